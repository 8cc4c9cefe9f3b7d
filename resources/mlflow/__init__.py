"""MLflow: tracking of runs, the model registry, and models as MLflow serves them."""
