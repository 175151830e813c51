"""Segmentation networks."""

from core.models.build import build_classifier, build_feature_extractor, build_model, describe_norms, log_network

__all__ = ["build_classifier", "build_feature_extractor", "build_model", "describe_norms", "log_network"]
