"""From live objects to projects and archives."""
