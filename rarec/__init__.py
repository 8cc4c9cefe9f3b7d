"""The science of RaRec: data, retrieval, models, training and evaluation. Knows neither Dagster nor MLflow."""
