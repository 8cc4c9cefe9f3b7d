"""Whether a candidate may take the champion's place: a paired comparison on the same events, and the rule."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from rarec.config import Settings
from rarec.metrics.ctr import METRICS, Interval, ctr_metrics, difference
from rarec.metrics.significance import PairedComparison
from rarec.types import Float64Array

Decision = Literal["first", "same", "better", "not worse", "worse"]
PASSES = ("first", "same", "better", "not worse")


class Rule(Settings):
    """When a candidate is good enough."""

    tolerance: float = pydantic.Field(
        default=0.01,
        ge=0,
        description="How much worse than the champion a candidate may look, as a share of the champion's figure, while "
        "the interval of the difference includes 0.",
    )
    strict: bool = pydantic.Field(
        default=False,
        description="Pass only what is shown not to be worse: the whole interval of the difference above the "
        "tolerance. Without it passes what is not shown to be worse.",
    )
    seed: int = pydantic.Field(default=42, ge=0, description="Seed of the resampled users.")

    def decide(self, compared: PairedComparison) -> tuple[Decision, str]:
        """The decision, and why in words. The greater figure is the better."""
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
        # Written so that an undefined difference is refused.
        if not compared.difference >= least:
            return "worse", f"{shown}: more than the tolerance of {self.tolerance:.1%} below"
        if self.strict and not compared.ci_low >= least:
            return "worse", f"{shown}: may be more than the tolerance of {self.tolerance:.1%} below (strict)"
        return "not worse", shown


def evidence(decision: Decision, reason: str, window: dict[str, Any], **figures: dict[str, float]) -> dict[str, Any]:
    """What is kept of a comparison: JSON, small enough for a tag."""
    rounded = {name: {key: round(value, 6) for key, value in values.items()} for name, values in figures.items()}
    return {"decision": decision, "reason": reason, "window": window, **rounded}


def with_unknown(probability: Float64Array) -> Float64Array:
    """(N,) probabilities, those of unknown targets (NaN) being the mean of the others: a model cannot tell what it does
    not know from anything else.
    """
    known = ~np.isnan(probability)
    return np.where(known, probability, probability[known].mean() if known.any() else 0.5)


def compare_answers(
    baseline: Float64Array, candidate: Float64Array, label: npt.ArrayLike, user: npt.ArrayLike, seed: int
) -> tuple[PairedComparison, Interval]:
    """Candidate minus baseline in AUC, and in LogLoss, by (N,) probabilities of the same samples; the intervals are of
    the same draws of users for both.
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
        reason="an AUC is no mean over users, so its interval alone tells",
    )
    return compared, figures["LogLoss"]
