"""The typed source of the custom resource: fields, defaults, rules, schema. Pure."""
