"""The configuration: one frozen :class:`Deployment`, made once by :func:`load`."""

from engine.config.schema import Deployment, EngineSection, FrontendSection, RouteSection, StageSection

__all__ = ["Deployment", "EngineSection", "FrontendSection", "RouteSection", "StageSection"]
