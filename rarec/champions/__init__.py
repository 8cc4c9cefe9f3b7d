"""The model in use: how it answers (raserec, rella), when a candidate replaces it (promotion), and when it drifts."""
