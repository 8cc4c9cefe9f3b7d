"""How a champion fares on what happened since its promotion, and which step of the cascade that asks for."""

import math
from typing import Literal

import pydantic

from rarec.champions.window import CHOICE, CHOICE_ERROR
from rarec.config import Settings

Verdict = Literal["none", "wait", "refresh", "finetune", "pretrain", "tune"]
RELLA_CHOICE, RELLA_ERROR = "AUC", "AUC standard error"
_Z = 1.96  # 95 %


class _Rule(Settings):
    """What both tracks judge alike."""

    least_events: int = pydantic.Field(
        default=100, ge=1, description="New events below which nothing is judged and the verdict is `wait`."
    )

    def _too_early(self, events: int) -> tuple[Verdict, str] | None:
        """The verdict where there is too little to judge."""
        if events == 0:
            return "none", "no event is newer than those by which the champion was promoted"
        if events < self.least_events:
            return "wait", f"{events} new events, fewer than least_events = {self.least_events}"
        return None


def _is_chance(
    choice: str, error: str, before: dict[str, float], now: dict[str, float], users: tuple[int, int]
) -> bool:
    """Whether a difference like this one is to be expected, in 95 of 100 cases, where nothing has changed.

    If nothing changed, users vary equally at both times, so the larger of the two standard deviations is used. This
    also protects against a few users who all missed and therefore show no variance. Many users are measured both times,
    so the test is conservative: it reports too few drops, not too many.

    Args:
        choice, error: names of the figure and of its standard error over users.
        users: on how many the figures of ``before`` and ``now`` are.
    """
    deviation = max(figures.get(error, 0.0) * math.sqrt(n) for figures, n in zip((before, now), users, strict=True))
    return abs(now[choice] - before[choice]) <= _Z * deviation * math.sqrt(sum(1 / n for n in users))


def _other_items(
    step: Verdict, now: dict[str, float], unknown_items: float, shift: float
) -> tuple[Verdict, str] | None:
    """``step``, if new events' items are too many unknown ones or too far from those before; limits as settings."""
    if now["unknown_items"] >= unknown_items:
        share = now["unknown_items"]
        return step, f"{share:.1%} of new events have unknown items ({step}_unknown_items = {unknown_items:.1%})"
    if now["item_shift"] >= shift:
        return step, f"new events' items shifted by {now['item_shift']:.3f} beyond chance ({step}_shift = {shift:.3f})"
    return None


class DriftRule(_Rule):
    """Which step is due. If several are, the most expensive one is chosen."""

    finetune_drop: float = pydantic.Field(
        default=0.15,
        ge=0,
        description="Fall of NDCG@10 since promotion, as a share of it, that asks for fine-tuning; where it may be "
        "chance (95 % interval over users) nothing is asked for.",
    )
    pretrain_drop: float = pydantic.Field(default=0.4, ge=0, description="The same for pre-training.")
    pretrain_unknown_items: float = pydantic.Field(
        default=0.1, ge=0, le=1, description="Share of new events with items unknown to the champion, for pre-training."
    )
    pretrain_shift: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="How far new events' items are from those before, beyond chance, for pre-training.",
    )

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "DriftRule":
        if self.pretrain_drop < self.finetune_drop:
            raise ValueError("pretrain_drop is below finetune_drop, so that fine-tuning would never be asked for")
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
        """The step that is asked for, and why in words.

        Args:
            events: new ones.
            judged: of them those that NDCG@10 is of; fewer than ``least_events`` tell nothing of it.
            unremembered: memories that a refresh would add, of new events and of those before the promotion.
            before: the champion's figures at its promotion; only NDCG@10 and its standard error are read.
            now: its figures on the new events, with ``unknown_items`` and ``item_shift``.
            users: of the promotion's events, and of those that are judged.
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
        description="Fall of AUC since promotion that asks for tuning anew; where it may be chance (95 % interval over "
        "users) nothing is asked for.",
    )
    tune_unknown_items: float = pydantic.Field(
        default=0.1, ge=0, le=1, description="Share of new events with items unknown to the champion that asks for it."
    )
    tune_shift: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="How far new events' items are from those before, beyond chance, that asks for it.",
    )

    def judge(
        self, events: int, before: dict[str, float], now: dict[str, float], users: tuple[int, int]
    ) -> tuple[Verdict, str]:
        """As `DriftRule.judge`, by AUC of all ``events``; ``now`` is empty where all or none of them are likes."""
        if early := self._too_early(events):
            return early
        if not now:
            return "wait", f"{events} new events, but all or none of them are likes, so nothing can be told apart"
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
