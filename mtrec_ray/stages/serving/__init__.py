"""The service: an engine that answers, an app that speaks HTTP, and replicas of both."""
