"""Options: :data:`cfg` holds every default, :func:`load_config` one experiment."""

from core.configs.defaults import cfg
from core.configs.loading import load_config

__all__ = ["cfg", "load_config"]
