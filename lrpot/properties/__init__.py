"""Crystal-property models: a crystal goes in, features of it come out, a head reads properties off them."""
