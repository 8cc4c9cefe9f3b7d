"""Promotion: a paired comparison of candidate and champion on the same events, and the rule that decides."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from rarec.config import Settings
from rarec.metrics.ctr import METRICS, Interval, ctr_metrics, difference
from rarec.metrics.significance import PairedComparison
from rarec.types import Float64Array

Kind = Literal["trained", "refreshed", "finetuned"]
"""A model that was trained as a whole; or the champion with a refreshed memory, or with stage 2 trained on that."""
Decision = Literal["first", "same", "better", "not worse", "worse"]
PASSES = ("first", "same", "better", "not worse")


class Rule(Settings):
    """When a candidate passes."""

    tolerance: float = pydantic.Field(
        default=0.01,
        ge=0,
        description="How much worse than the champion a candidate may be, relative to the champion's figure, if the "
        "interval of the difference includes 0.",
    )
    strict: bool = pydantic.Field(
        default=False,
        description="Pass only candidates that are shown not to be worse: the whole interval of the difference is "
        "within the tolerance. Otherwise all pass that are not shown to be worse.",
    )
    seed: int = pydantic.Field(default=42, ge=0, description="Seed of the resampled users.")
    replace_lost: bool = pydantic.Field(
        default=False,
        description="If the champion's artifacts are lost, promote the candidate without a comparison.",
    )

    def decide(self, compared: PairedComparison) -> tuple[Decision, str]:
        """The decision, and the reason in words. Higher figures are better."""
        interval = f"{compared.ci_low:+.4f} to {compared.ci_high:+.4f}"
        shown = (
            f"{compared.candidate_mean:.4f} against {compared.baseline_mean:.4f}, difference "
            f"{compared.difference:+.4f} (95% interval {interval}, {compared.n_users} users)"
        )
        if compared.ci_low > 0:
            return "better", shown
        if compared.ci_high < 0:
            return "worse", f"{shown}: significantly worse"
        least = -self.tolerance * compared.baseline_mean
        # Written so that an undefined (NaN) difference fails.
        if not compared.difference >= least:
            return "worse", f"{shown}: more than the tolerance of {self.tolerance:.1%} below"
        if self.strict and not compared.ci_low >= least:
            return "worse", f"{shown}: may be more than the tolerance of {self.tolerance:.1%} below (strict)"
        return "not worse", shown


class CandidateSettings(Rule):
    """RaSeRec: which model is the candidate, on which events it is compared, and when it passes."""

    source: Kind = pydantic.Field(
        default="trained",
        description="The current `raserec_finetuned` (trained), or the champion with the current `refreshed_memory` "
        "(refreshed), and `refreshed_finetuned` (finetuned).",
    )
    least_events: int = pydantic.Field(
        default=100,
        ge=1,
        description="Least number of events since the training of both models; with fewer, the last event of every "
        "user is used instead (leave-one-out).",
    )
    least_users: int = pydantic.Field(
        default=30, ge=1, description="Least number of users who have these events; the same applies with fewer."
    )
    most_events: int = pydantic.Field(
        default=20_000,
        ge=1,
        description="Maximum number of events to compare on, drawn with the seed.",
    )


class RellaCandidateSettings(Rule):
    """ReLLa: on how many samples the models are compared, and when a candidate passes."""

    test_samples: int = pydantic.Field(
        default=10_000, ge=2, description="Maximum number of test samples to compare on, drawn with the seed."
    )
    batch_tokens: int = pydantic.Field(
        default=16_384, ge=64, description="Most tokens of a padded batch of prompts, as for `ctr_predictions`."
    )


def evidence(decision: Decision, reason: str, window: dict[str, Any], **figures: dict[str, float]) -> dict[str, Any]:
    """A comparison as JSON, small enough for a tag."""
    rounded = {name: {key: round(value, 6) for key, value in values.items()} for name, values in figures.items()}
    return {"decision": decision, "reason": reason, "window": window, **rounded}


def with_unknown(probability: Float64Array) -> Float64Array:
    """(N,) probabilities, with the mean in place of NaN, for targets that a model does not know."""
    known = ~np.isnan(probability)
    return np.where(known, probability, probability[known].mean() if known.any() else 0.5)


def compare_answers(
    baseline: Float64Array, candidate: Float64Array, label: npt.ArrayLike, user: npt.ArrayLike, seed: int
) -> tuple[PairedComparison, Interval]:
    """Candidate minus baseline in AUC and in LogLoss, from (N,) probabilities of the same samples.

    Both intervals use the same draws of users.
    """
    figures = difference(candidate, baseline, label, user, seed)
    own, theirs = (
        float(ctr_metrics(probability, label)[METRICS.index("AUC")]) for probability in (candidate, baseline)
    )
    auc, nan = figures["AUC"], float("nan")
    compared = PairedComparison(
        n_users=len(np.unique(user)),
        baseline_mean=theirs,
        candidate_mean=own,
        difference=auc.value,
        ci_low=auc.low,
        ci_high=auc.high,
        confidence=0.95,
        t_test_p=nan,
        wilcoxon_p=nan,
        reason="AUC is not a mean over users, so only its interval is used",
    )
    return compared, figures["LogLoss"]
