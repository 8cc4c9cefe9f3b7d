"""What a training worker needs: engine, epoch loop, checkpoint and resume, dropout, progress."""
