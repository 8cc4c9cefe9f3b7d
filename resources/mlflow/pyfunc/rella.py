"""ReLLa as an MLflow model: user, history and target in, the probability of a like out. MLflow loads this file."""

import json
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema


class ReLLaModel(PythonModel):
    """Tells how probably somebody likes an item.

    Input: a table with the columns ``user`` (a user id as published, or none for somebody unknown), ``history`` (a list
    of item ids, oldest first), ``ratings`` (theirs) and ``target`` (an item id). Of the history the K behaviours most
    similar to the target stand in the prompt. Output: a column ``probability``. Items of the history that the model
    does not know are passed over; an unknown target is an error.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load language model (a hub's from the hub's usual cache), adapter and item vectors."""
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
        context: PythonModelContext,  # noqa: ARG002  MLflow hands it over
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Score every row of ``model_input``."""
        users = model_input["user"].tolist() if "user" in model_input else [None] * len(model_input)
        others = (model_input[name].tolist() for name in ("history", "ratings", "target"))
        return pd.DataFrame({"probability": self.model.predict(users, *others)}, index=model_input.index)


def signature() -> ModelSignature:
    """What the model takes and gives; ids may be numbers or texts, as published."""
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
