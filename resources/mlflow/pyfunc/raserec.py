"""RaSeRec as an MLflow model: histories in, the best items out. MLflow loads this file as the model's code."""

import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

DEFAULT_TOP_N = 10


class RaSeRecModel(PythonModel):
    """Recommends items to users who need not be in the training data.

    Input: a table with a column ``history``; each cell is a list of item ids as published, oldest first. Output: a
    table with ``items`` (list of ids, best first) and ``scores``, one row per history. Items unknown to the model are
    skipped; a history without any known item gets an empty list. Parameters: ``top_n`` (10), ``exclude_seen`` (True).
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load encoder, memory bank, module and the item table."""
        from pathlib import Path

        from rarec.data.ids import IdLookup
        from rarec.raserec.recommender import Recommender

        folders = {name: Path(path) for name, path in context.artifacts.items()}
        self.items = pd.read_parquet(folders["items"] / "items.parquet", columns=["item_id"])["item_id"]
        self.rows = IdLookup(self.items)
        self.model = Recommender.load(
            folders["encoder"], folders["bank"], folders["module"], context.model_config["encoder_fingerprint"]
        )

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, object] | None = None,
    ) -> pd.DataFrame:
        """Recommend for every row of ``model_input``."""
        from rarec.raserec.recommender import recommend_histories

        params = params or {}
        histories = [self._known(history) for history in model_input["history"]]
        lists = recommend_histories(
            self.model, histories, int(str(params.get("top_n", DEFAULT_TOP_N))), bool(params.get("exclude_seen", True))
        )
        return pd.DataFrame(
            {
                "items": [self.items.take(rows).tolist() for rows, _ in lists],
                "scores": [scores.tolist() for _, scores in lists],
            },
            index=model_input.index,
        )

    def _known(self, history: list[object]) -> list[int]:
        return [row for row in self.rows.rows(history).tolist() if row >= 0]


def signature() -> ModelSignature:
    """Input and output of the model; ids may be numbers or texts, as published."""
    return ModelSignature(
        inputs=Schema([ColSpec(Array(AnyType()), "history")]),
        outputs=Schema([ColSpec(Array(AnyType()), "items"), ColSpec(Array(DataType.float), "scores")]),
        params=ParamSchema(
            [
                ParamSpec("top_n", DataType.integer, DEFAULT_TOP_N),
                ParamSpec("exclude_seen", DataType.boolean, True),
            ]
        ),
    )


set_model(RaSeRecModel())
