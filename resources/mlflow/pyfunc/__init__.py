"""Models as MLflow loads them. Each file is copied into the model and must import nothing else of `resources`."""
