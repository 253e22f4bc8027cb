"""How HTTP exchanges ended, from Envoy's access log service: `service` receives, `verdict` decides."""
