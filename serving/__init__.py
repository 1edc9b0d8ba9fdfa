"""The pipeline behind HTTP: schema, upload sandbox, Ray Serve application, client, command line and web page."""
