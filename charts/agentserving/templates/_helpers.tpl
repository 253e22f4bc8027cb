{{- define "agentserving.name" -}}
{{- printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "agentserving.selector" -}}
app.kubernetes.io/name: agentserving-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "agentserving.labels" -}}
{{ include "agentserving.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: agentserving
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* image: a digest, else a tag, else the chart's appVersion. */ -}}
{{- define "agentserving.image" -}}
{{- if .image.digest -}}
{{ printf "%s@%s" .image.repository .image.digest }}
{{- else -}}
{{ printf "%s:%s" .image.repository (default .appVersion .image.tag) }}
{{- end -}}
{{- end -}}

{{- /* How Prometheus says who it is, if it has to. */ -}}
{{- define "agentserving.metricsToken" -}}
{{- with .Values.monitoring.tokenSecret -}}
authorization:
  type: Bearer
  credentials: {name: {{ . }}, key: token}
{{- end -}}
{{- end }}
