{{/* What names of the chart's own objects begin with. */}}
{{- define "sheepdog.name" -}}
{{- if contains "sheepdog" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-sheepdog" (.Release.Name | trunc 31 | trimSuffix "-") }}{{ end -}}
{{- end }}

{{/* Objects without a namespace: two releases of one name in two namespaces do not get in each other's way. */}}
{{- define "sheepdog.globalName" -}}
{{ printf "%s-%s" .Release.Namespace (include "sheepdog.name" .) }}
{{- end }}

{{/* An image of {registry, repository, tag, digest}; the second of the list is the tag if there is none. */}}
{{- define "sheepdog.image" -}}
{{- $image := index . 0 -}}
{{- $name := ternary (printf "%s/%s" $image.registry $image.repository) $image.repository (ne $image.registry "") -}}
{{- if $image.digest }}{{ printf "%s@%s" $name $image.digest }}{{ else }}{{ printf "%s:%s" $name (default (index . 1) $image.tag) }}{{ end -}}
{{- end }}

{{- define "sheepdog.selector" -}}
app.kubernetes.io/name: sheepdog-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sheepdog.metadata" -}}
labels:
{{- with .Values.commonLabels }}
{{ toYaml . | indent 2 }}
{{- end }}
{{ include "sheepdog.selector" . | indent 2 }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonAnnotations }}
annotations:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}

{{/* What the operator is told of Kubernetes. */}}
{{- define "sheepdog.settings" -}}
{{- $sidecars := dict }}
{{- range $name, $sidecar := .Values.csi.sidecars }}
{{- $_ := set $sidecars $name (dict "image" (include "sheepdog.image" (list $sidecar.image "latest")) "args" $sidecar.args "resources" $sidecar.resources) }}
{{- end }}
{{- $csi := dict
  "kubeletDir" .Values.csi.kubeletDir
  "seLinuxMount" .Values.csi.seLinuxMount
  "controller" .Values.csi.controller
  "controllerReplicas" .Values.csi.controllerReplicas
  "node" .Values.csi.node
  "sidecars" $sidecars }}
{{- dict
  "cluster" .Values.cluster.name
  "image" (include "sheepdog.image" (list .Values.image .Chart.AppVersion))
  "imagePullPolicy" .Values.image.pullPolicy
  "imagePullSecrets" .Values.imagePullSecrets
  "labels" .Values.commonLabels
  "annotations" .Values.commonAnnotations
  "serviceAccount" (printf "%s-nodes" (include "sheepdog.name" .))
  "csiServiceAccount" (printf "%s-csi-controller" (include "sheepdog.name" .))
  "storage" .Values.storage
  "gateway" .Values.gateway
  "device" .Values.device
  "csi" $csi
  "storageClass" .Values.storageClass
  "snapshotClass" .Values.snapshotClass | toPrettyJson }}
{{- end }}

{{- define "sheepdog.cluster" -}}
{{ dict "name" .Values.cluster.name "spec" .Values.cluster.spec | toPrettyJson }}
{{- end }}
