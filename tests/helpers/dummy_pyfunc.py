"""A model that MLflow logs from its code; see tests/resources/mlflow/test_tracking.py."""

import mlflow
import numpy as np


class Dummy(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.weights = np.load(context.artifacts["weights"], allow_pickle=False)

    def predict(self, context, model_input, params=None):
        return model_input["x"].to_numpy() * self.weights


mlflow.models.set_model(Dummy())
