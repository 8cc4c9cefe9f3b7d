"""ReLLa as an MLflow model: user, history and target in, probability of a like out. MLflow loads this file."""

import json
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema


class ReLLaModel(PythonModel):
    """Predicts the probability that a user likes an item.

    Input: a table with the columns ``user`` (a user id as published, or none for an unknown user), ``history`` (a list
    of item ids, oldest first), ``ratings`` (of the history's items) and ``target`` (an item id). The prompt holds the K
    items of the history that are most similar to the target. Output: a column ``probability``. Unknown items in the
    history are skipped; an unknown target is an error.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the language model (one from a hub out of the hub's usual cache), the adapter and the item vectors."""
        from pathlib import Path

        from rarec.data.templates import Template
        from rarec.rella.online import OnlineModel

        settings = context.model_config
        self.model = OnlineModel.load(
            {name: Path(path) for name, path in context.artifacts.items()},
            settings["base"],
            Template(**json.loads(settings["template"])),
            int(settings["behaviours"]),
        )

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Score every row of ``model_input``."""
        users = model_input["user"].tolist() if "user" in model_input else [None] * len(model_input)
        others = (model_input[name].tolist() for name in ("history", "ratings", "target"))
        return pd.DataFrame({"probability": self.model.predict(users, *others)}, index=model_input.index)


def signature() -> ModelSignature:
    """Input and output of the model; ids may be numbers or texts, as published."""
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(AnyType(), "user", required=False),
                ColSpec(Array(AnyType()), "history"),
                ColSpec(Array(DataType.double), "ratings"),
                ColSpec(AnyType(), "target"),
            ]
        ),
        outputs=Schema([ColSpec(DataType.double, "probability")]),
    )


set_model(ReLLaModel())
