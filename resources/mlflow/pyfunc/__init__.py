"""Models as MLflow loads them. Each file is copied into its model, so it must import nothing else from `resources`."""
