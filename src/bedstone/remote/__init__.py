"""Models behind an endpoint of somebody else, with the API of OpenAI."""
