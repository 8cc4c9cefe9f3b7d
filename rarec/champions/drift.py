"""Drift rules: which step a champion's figures on new events call for. The report is in `rarec.reports.drift`."""

import math
from typing import Literal

import pydantic

from rarec.champions.window import CHOICE, CHOICE_ERROR
from rarec.config import Settings

Verdict = Literal["none", "wait", "refresh", "finetune", "pretrain", "tune"]
RELLA_CHOICE, RELLA_ERROR = "AUC", "AUC standard error"
_Z = 1.96  # 95 %


class _Rule(Settings):
    """What both tracks have in common."""

    least_events: int = pydantic.Field(
        default=100, ge=1, description="Least number of new events to judge by; with fewer, the verdict is `wait`."
    )

    def _too_early(self, events: int) -> tuple[Verdict, str] | None:
        """The verdict if there are too few events to judge by."""
        if events == 0:
            return "none", "there are no events newer than those of the champion's promotion"
        if events < self.least_events:
            return "wait", f"{events} new events, fewer than least_events = {self.least_events}"
        return None


def _is_chance(
    choice: str, error: str, before: dict[str, float], now: dict[str, float], users: tuple[int, int]
) -> bool:
    """Whether a difference like this is within the 95 % interval of no change.

    If nothing changed, users vary equally at both times, so the larger of the two standard deviations is used. This
    also protects against a few users who all missed and therefore show no variance. Many users are measured both times,
    so the test is conservative: it reports too few drops, not too many.

    Args:
        choice, error: Names of the figure and of its standard error over users.
        users: Numbers of users behind the figures of ``before`` and ``now``.
    """
    deviation = max(figures.get(error, 0.0) * math.sqrt(n) for figures, n in zip((before, now), users, strict=True))
    return abs(now[choice] - before[choice]) <= _Z * deviation * math.sqrt(sum(1 / n for n in users))


def _other_items(
    step: Verdict, now: dict[str, float], unknown_items: float, shift: float
) -> tuple[Verdict, str] | None:
    """``step``, if too many items of new events are unknown, or their distribution has shifted too far."""
    if now["unknown_items"] >= unknown_items:
        share = now["unknown_items"]
        return step, f"{share:.1%} of new events have unknown items ({step}_unknown_items = {unknown_items:.1%})"
    if now["item_shift"] >= shift:
        return (
            step,
            f"items of new events shifted by {now['item_shift']:.3f} beyond chance ({step}_shift = {shift:.3f})",
        )
    return None


class DriftRule(_Rule):
    """Which step is due. If several are, the most expensive one is chosen."""

    finetune_drop: float = pydantic.Field(
        default=0.15,
        ge=0,
        description="Relative fall of NDCG@10 since promotion that calls for fine-tuning, unless it may be chance "
        "(95 % interval over users).",
    )
    pretrain_drop: float = pydantic.Field(default=0.4, ge=0, description="The same, for pre-training.")
    pretrain_unknown_items: float = pydantic.Field(
        default=0.1, ge=0, le=1, description="Share of new events with unknown items that calls for pre-training."
    )
    pretrain_shift: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="Shift of the distribution of items, beyond chance, that calls for pre-training.",
    )

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "DriftRule":
        if self.pretrain_drop < self.finetune_drop:
            raise ValueError("pretrain_drop is below finetune_drop, so fine-tuning would never be called for; raise it")
        return self

    def judge(
        self,
        events: int,
        judged: int,
        unremembered: int,
        before: dict[str, float],
        now: dict[str, float],
        users: tuple[int, int],
    ) -> tuple[Verdict, str]:
        """The step that is called for, and the reason in words.

        Args:
            events: Number of new events.
            judged: Number of those that NDCG@10 is computed on. Fewer than ``least_events`` say nothing.
            unremembered: Number of memories that a refresh would add, from new events and earlier ones.
            before: The champion's figures at its promotion; only NDCG@10 and its standard error are read.
            now: Its figures on the new events, with ``unknown_items`` and ``item_shift``.
            users: Numbers of users of the promotion's events, and of those that are judged.
        """
        if early := self._too_early(events):
            if unremembered >= self.least_events:
                return "refresh", f"{unremembered} events are not in the champion's memory; {early[1]}"
            return early
        if judged < self.least_events:
            drop = -math.inf
            fell = f"{CHOICE} not judged: only {judged} new events are comparable with those of the promotion"
        else:
            drop = 1 - now[CHOICE] / before[CHOICE] if before[CHOICE] > 0 else 0.0
            fell = f"{CHOICE} went from {before[CHOICE]:.4f} to {now[CHOICE]:.4f} ({0 - drop:+.1%})"
            if _is_chance(CHOICE, CHOICE_ERROR, before, now, users):
                drop, fell = -math.inf, f"{fell}, which may be chance"
        if other := _other_items("pretrain", now, self.pretrain_unknown_items, self.pretrain_shift):
            return other
        if drop >= self.pretrain_drop:
            return "pretrain", f"{fell}, at least pretrain_drop = {self.pretrain_drop:.1%}"
        if drop >= self.finetune_drop:
            return "finetune", f"{fell}, at least finetune_drop = {self.finetune_drop:.1%}"
        return "refresh", f"{events} new events to remember; {fell}"


class RellaDriftRule(_Rule):
    """When the language model should be tuned again."""

    tune_drop: float = pydantic.Field(
        default=0.02,
        ge=0,
        description="Fall of AUC since promotion that calls for tuning, unless it may be chance (95 % interval over "
        "users).",
    )
    tune_unknown_items: float = pydantic.Field(
        default=0.1, ge=0, le=1, description="Share of new events with unknown items that calls for tuning."
    )
    tune_shift: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="Shift of the distribution of items, beyond chance, that calls for tuning.",
    )

    def judge(
        self, events: int, before: dict[str, float], now: dict[str, float], users: tuple[int, int]
    ) -> tuple[Verdict, str]:
        """Like `DriftRule.judge`, by AUC of all ``events``. ``now`` is empty if all or none of them are likes."""
        if early := self._too_early(events):
            return early
        if not now:
            return "wait", f"{events} new events, but all or none of them are likes, so there is no AUC"
        drop = before[RELLA_CHOICE] - now[RELLA_CHOICE]
        fell = f"{RELLA_CHOICE} went from {before[RELLA_CHOICE]:.4f} to {now[RELLA_CHOICE]:.4f} ({0 - drop:+.4f})"
        if _is_chance(RELLA_CHOICE, RELLA_ERROR, before, now, users):
            drop, fell = -math.inf, f"{fell}, which may be chance"
        if other := _other_items("tune", now, self.tune_unknown_items, self.tune_shift):
            return other
        if drop >= self.tune_drop:
            return "tune", f"{fell}, at least tune_drop = {self.tune_drop:.3f}"
        return "none", f"{events} new events; {fell}"


class DriftSettings(DriftRule):
    """What asks for which step, and on how many events that is judged."""

    most_events: int = pydantic.Field(
        default=20_000, ge=1, description="Maximum number of new events to measure, drawn with the seed."
    )
    seed: int = pydantic.Field(default=42, ge=0, description="Seed of the draw.")


class RellaDriftSettings(RellaDriftRule):
    """What asks for tuning again, and on how many events that is judged."""

    most_events: int = pydantic.Field(
        default=10_000, ge=2, description="Maximum number of new events to measure, drawn with the seed."
    )
    seed: int = pydantic.Field(default=42, ge=0, description="Seed of the draw.")
    batch_tokens: int = pydantic.Field(
        default=16_384, ge=64, description="Most tokens of a padded batch of prompts, as for `ctr_predictions`."
    )
