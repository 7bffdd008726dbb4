"""Store: what a repository keeps, by name: objects, manifests and pages, operations, refs."""
