"""The typed source of the custom resource: fields, defaults, rules and the schema generated from them. Pure."""
