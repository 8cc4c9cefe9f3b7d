"""What a training worker needs. Read in this order: job, progress, engine_settings, engine, fit, checkpoint.

Nothing here knows a model: a stage hands `fit` an `Objective`.
"""
