"""Segmentation networks."""

from core.models.build import build_classifier, build_feature_extractor, build_model, log_dead_channels

__all__ = ["build_classifier", "build_feature_extractor", "build_model", "log_dead_channels"]
