"""A source to a project, by reading its syntax tree: form, hooks, problems, where its stages run."""
