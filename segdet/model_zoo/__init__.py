"""Official configs and released models by name."""

from segdet.model_zoo.zoo import get, get_checkpoint_url, get_config, get_config_file

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]
