"""Segmentation networks."""

from core.models.build import build_classifier, build_feature_extractor, build_model, load_model

__all__ = ["build_classifier", "build_feature_extractor", "build_model", "load_model"]
