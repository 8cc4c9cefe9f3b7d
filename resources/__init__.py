"""Services that assets use: artifact store, MLflow, training launcher and the folders of this installation."""
