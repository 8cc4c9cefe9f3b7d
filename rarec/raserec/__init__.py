"""The RaSeRec track: encoders, losses, both training stages, and the recommender that they make."""
