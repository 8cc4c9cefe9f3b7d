"""Simple baselines, which every model has to beat: popularity and item-KNN, and a logistic regression."""
