"""DeepSpeed: its config, the engine, where parameters lie. Nothing else imports it."""
