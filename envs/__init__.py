"""CarRacing in batches, its tracks, and the rollout loop."""
