"""Pictures of a result: boxes and labels on the page, pruned tokens dimmed; PNG, PDF, HTML."""
