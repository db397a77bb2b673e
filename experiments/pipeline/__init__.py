"""The pipeline behind the main jobs: config, runner, stages, a run's folder, metrics."""
