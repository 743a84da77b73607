"""OAuth 2.0 for the apps of people: django-oauth-toolkit is the server, here is what this node adds and narrows."""
