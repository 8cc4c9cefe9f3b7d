"""What both papers compare against, and the yardsticks that nobody may lose to."""
