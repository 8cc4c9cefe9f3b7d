"""What assets talk to: artifact store, MLflow, training launcher and the folders of this installation."""
