{{/* The beginning of all names: the release's name, with `attune` in it. */}}
{{- define "attune.name" -}}
{{- printf "%s" (ternary .Release.Name (printf "%s-attune" .Release.Name) (contains "attune" .Release.Name)) | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of all objects. Argument: dict "root" $ "component" "api". */}}
{{- define "attune.labels" -}}
{{ include "attune.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "attune.selector" -}}
app.kubernetes.io/name: attune
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of the pods that the scheduler starts: scheduler/src/providers/kubernetes/names.rs. */}}
{{- define "attune.runSelector" -}}
matchLabels:
  app.kubernetes.io/managed-by: attune
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: [trainer, serving]}
{{- end }}

{{- define "attune.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "attune.secret" -}}
{{ .Values.secrets.existing | default (printf "%s-secrets" (include "attune.name" .)) }}
{{- end }}

{{- define "attune.runsNamespace" -}}
{{ .Values.runs.namespace | default .Release.Namespace }}
{{- end }}

{{/* The API's address for trainers, replicas and the scheduler. */}}
{{- define "attune.apiUrl" -}}
http://{{ include "attune.name" . }}-api.{{ .Release.Namespace }}.svc:{{ .Values.api.service.port }}
{{- end }}

{{/*
A section of TOML: dict "path" "provider" "value" (a map). Values that are maps become sections below it, lists of maps
become arrays of sections. JSON's scalars and lists of scalars are TOML's.
*/}}
{{- define "attune.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .value }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value) (and (kindIs "slice" $value) (include "attune.isTables" $value))) }}
{{ $key | toJson }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- range $key, $value := .value }}
{{- $below := printf "%s.%s" $path ($key | toJson) }}
{{- if and (kindIs "map" $value) $value }}
[{{ $below }}]
{{- include "attune.toml" (dict "path" $below "value" $value) }}
{{- else if and (kindIs "slice" $value) (include "attune.isTables" $value) }}
{{- range $value }}
[[{{ $below }}]]
{{- include "attune.toml" (dict "path" $below "value" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Not empty if the list has maps. */}}
{{- define "attune.isTables" -}}
{{- range . }}{{ if kindIs "map" . }}yes{{ end }}{{ end }}
{{- end }}

{{/* A top-level section, if it is not empty: dict "name" "limits" "value" (a map). */}}
{{- define "attune.section" -}}
{{- if .value }}
[{{ .name }}]
{{- include "attune.toml" (dict "path" .name "value" .value) }}
{{ end }}
{{- end }}

{{/* Sections of both files. */}}
{{- define "attune.sharedToml" -}}
[database]
{{- include "attune.toml" (dict "path" "database" "value" .Values.database) }}

[object_store]
{{- $store := dict "region" .Values.objectStore.region "bucket" .Values.objectStore.bucket "path_style" .Values.objectStore.path_style }}
{{- if .Values.objectStore.endpoint }}{{ $_ := set $store "endpoint" .Values.objectStore.endpoint }}{{ end }}
{{- include "attune.toml" (dict "path" "object_store" "value" $store) }}
{{ include "attune.section" (dict "name" "prices" "value" .Values.prices) }}
{{- include "attune.section" (dict "name" "webhooks" "value" .Values.webhooks) }}
{{- end }}

{{/* Metrics: dict "root" $ "value" (a map with more keys). */}}
{{- define "attune.metricsToml" -}}
{{- if .root.Values.metrics.enabled }}
{{- include "attune.section" (dict "name" "metrics" "value" (merge (dict "listen" (printf "0.0.0.0:%d" (int .root.Values.metrics.port))) .value)) }}
{{- end }}
{{- end }}

{{- define "attune.apiToml" -}}
listen = "0.0.0.0:8080"
public_url = {{ .Values.publicUrl | toJson }}

{{ include "attune.sharedToml" . }}
{{- include "attune.metricsToml" (dict "root" . "value" dict) }}
{{- include "attune.section" (dict "name" "serving" "value" (omit .Values.serving "idle_seconds" "max_replicas" "target_concurrency")) }}
{{- include "attune.section" (dict "name" "limits" "value" .Values.limits) }}
{{- include "attune.section" (dict "name" "rate_limits" "value" .Values.rate_limits) }}
{{- include "attune.section" (dict "name" "cors" "value" .Values.cors) }}
{{- range .Values.oidc }}
[[oidc]]
{{- include "attune.toml" (dict "path" "oidc" "value" .) }}
{{ end }}
{{- .Values.api.extraToml }}
{{- end }}

{{/* The provider `kubernetes`. */}}
{{- define "attune.runsProvider" -}}
{{- $provider := dict "kind" "kubernetes" "work_dir" "/var/lib/attune" "image" .Values.runs.image }}
{{- $_ := set $provider "namespace" (include "attune.runsNamespace" .) }}
{{- $_ := set $provider "service_account" (printf "%s-runs" (include "attune.name" .)) }}
{{- if .Values.runs.cudaImage }}{{ $_ := set $provider "cuda_image" .Values.runs.cudaImage }}{{ end }}
{{- if .Values.runs.imagePullSecrets }}{{ $_ := set $provider "image_pull_secrets" .Values.runs.imagePullSecrets }}{{ end }}
{{- if .Values.runs.discover }}{{ $_ := set $provider "discover" true }}{{ end }}
{{- if .Values.metrics.enabled }}{{ $_ := set $provider "metrics_port" (int .Values.metrics.port) }}{{ end }}
{{- if .Values.kueue.enabled }}{{ $_ := set $provider "local_queue" .Values.kueue.queue }}{{ end }}
{{- if .Values.runs.offers }}{{ $_ := set $provider "offer" .Values.runs.offers }}{{ end }}
{{- merge (deepCopy .Values.runs.settings) $provider | toJson }}
{{- end }}

{{- define "attune.schedulerToml" -}}
api_url = {{ include "attune.apiUrl" . | toJson }}

{{ include "attune.sharedToml" . }}
{{- include "attune.metricsToml" (dict "root" . "value" (dict "projects" .Values.metrics.projects)) }}
{{- include "attune.section" (dict "name" "serving" "value" (omit .Values.serving "disk_cache_bytes")) }}
{{- include "attune.section" (dict "name" "leases" "value" .Values.leases) }}
{{- if .Values.runs.enabled }}
[[provider]]
{{- include "attune.toml" (dict "path" "provider" "value" (include "attune.runsProvider" . | fromJson)) }}
{{ end }}
{{- range .Values.providers }}
[[provider]]
{{- include "attune.toml" (dict "path" "provider" "value" .) }}
{{ end }}
{{- .Values.scheduler.extraToml }}
{{- end }}

{{/* Environment of both programs: dict "root" $ "owner" true (the API's secrets too) "secret" (another Secret's name). */}}
{{- define "attune.env" -}}
{{- $secret := .secret | default (include "attune.secret" .root) }}
{{- $names := list "ATTUNE_DATABASE__URL" "ATTUNE_OBJECT_STORE__ACCESS_KEY_ID" "ATTUNE_OBJECT_STORE__SECRET_ACCESS_KEY" }}
{{- $optional := list "ATTUNE_WEBHOOKS__SECRET_KEY" }}
{{- if .owner }}{{ $optional = concat $optional (list "ATTUNE_DATABASE__OWNER_URL" "ATTUNE_BOOTSTRAP_KEY") }}{{ end }}
{{- range $names }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ . }}}}
{{- end }}
{{- range $optional }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ . }}, optional: true}}
{{- end }}
- {name: RUST_LOG, value: {{ .root.Values.log.filter | quote }}}
- {name: ATTUNE_LOG, value: {{ .root.Values.log.filter | quote }}}
- {name: ATTUNE_LOG_FORMAT, value: {{ .root.Values.log.format | quote }}}
{{- if .root.Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .root.Values.tracing.endpoint | quote }}}
{{- end }}
{{- end }}

{{- define "attune.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "attune.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "attune.secretData" -}}
{{- with .Values.secrets -}}
ATTUNE_DATABASE__URL: {{ required "secrets.databaseUrl (or secrets.existing) is required" .databaseUrl | quote }}
{{- if .databaseOwnerUrl }}
ATTUNE_DATABASE__OWNER_URL: {{ .databaseOwnerUrl | quote }}
{{- end }}
ATTUNE_OBJECT_STORE__ACCESS_KEY_ID: {{ required "secrets.objectStoreAccessKeyId is required" .objectStoreAccessKeyId | quote }}
ATTUNE_OBJECT_STORE__SECRET_ACCESS_KEY: {{ required "secrets.objectStoreSecretAccessKey is required" .objectStoreSecretAccessKey | quote }}
{{- if .webhooksSecretKey }}
ATTUNE_WEBHOOKS__SECRET_KEY: {{ .webhooksSecretKey | quote }}
{{- end }}
{{- if .bootstrapKey }}
ATTUNE_BOOTSTRAP_KEY: {{ .bootstrapKey | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* An egress or ingress rule: dict "key" "to" "peers" (a list; empty: any) "ports" (numbers). */}}
{{- define "attune.rule" -}}
- ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ int . }}}
    {{- end }}
  {{- with .peers }}
  {{ $.key }}: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "attune.dnsRule" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
  {{- with .Values.networkPolicy.dns.to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Pods of the platform as a peer, also from the namespace of runs: dict "root" $ "component" "api". */}}
{{- define "attune.peer" -}}
- namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ .root.Release.Namespace }}}
  podSelector:
    matchLabels: {{- include "attune.selector" . | nindent 6 }}
{{- end }}

{{/* Pods of runs as a peer. */}}
{{- define "attune.runPeer" -}}
- namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ include "attune.runsNamespace" . }}}
  podSelector: {{- include "attune.runSelector" . | nindent 4 }}
{{- end }}

{{- define "attune.outsideRule" -}}
- ports:
    {{- range .Values.networkPolicy.outside.ports }}
    - {protocol: TCP, port: {{ int . }}}
    {{- end }}
  to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except: {{- toYaml .Values.networkPolicy.outside.except | nindent 10 }}
{{- end }}

{{/* What all programs of the platform reach. */}}
{{- define "attune.storeRules" -}}
{{ include "attune.dnsRule" . }}
{{ include "attune.rule" (dict "key" "to" "peers" .Values.networkPolicy.database.to "ports" .Values.networkPolicy.database.ports) }}
{{ include "attune.rule" (dict "key" "to" "peers" .Values.networkPolicy.objectStore.to "ports" .Values.networkPolicy.objectStore.ports) }}
{{- if .Values.tracing.endpoint }}
{{ include "attune.rule" (dict "key" "to" "peers" .Values.tracing.to "ports" (list .Values.tracing.port)) }}
{{- end }}
{{- end }}
