"""Names that users know: comm, events, logger, visualizer, collect_env, env."""
