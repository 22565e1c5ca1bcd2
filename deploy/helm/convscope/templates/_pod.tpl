{{- /* At most 53 characters: KServe appends `-predictor` to it, and a name may have 63. */}}
{{- define "convscope.name" -}}
{{- $name := contains "convscope" .Release.Name | ternary .Release.Name (printf "%s-convscope" .Release.Name) -}}
{{- $name | trunc 53 | trimSuffix "-" -}}
{{- end }}

{{- define "convscope.selector" -}}
app.kubernetes.io/name: convscope
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "convscope.labels" -}}
{{ include "convscope.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "convscope.target" -}}
apiVersion: apps/v1
kind: Deployment
name: {{ include "convscope.name" . }}{{ if .Values.kserve }}-predictor{{ end }}
{{- end }}

{{- define "convscope.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* The pod, for the Deployment and for KServe. */}}
{{- define "convscope.pod" -}}
{{- $models := .Values.models -}}
automountServiceAccountToken: false
enableServiceLinks: false
# The supervisor kills a worker ten seconds after these two; the pod outlives that.
terminationGracePeriodSeconds: {{ add (ceil .Values.settings.drain_delay) .Values.settings.shutdown_seconds 15 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ quote . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "convscope.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- if eq $models.from "initContainer" }}
initContainers:
  - name: models
    image: {{ $models.initContainer.image | quote }}
    command: {{- toYaml $models.initContainer.command | nindent 6 }}
    {{- with $models.initContainer.env }}
    env: {{- toYaml . | nindent 6 }}
    {{- end }}
    resources: {{- toYaml .Values.resources | nindent 6 }}
    securityContext: {{- include "convscope.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      - name: models
        mountPath: /models
{{- end }}
containers:
  - name: {{ .Values.kserve | ternary "kserve-container" "convscope" }}
    image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    ports:
      - name: http
        containerPort: 8000
    env:
      {{- /* JSON writes large numbers without an exponent. */}}
      {{- range $name, $value := .Values.settings }}
      - name: CONVSCOPE_{{ upper $name }}
        value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
      {{- end }}
    # One worker for each processor of the limit.
    resources: {{- toYaml .Values.resources | nindent 6 }}
    securityContext: {{- include "convscope.containerSecurity" . | nindent 6 }}
    # Every model gives its golden answers before the service is ready.
    startupProbe:
      httpGet: {path: /health/ready, port: http}
      periodSeconds: 2
      timeoutSeconds: 2
      failureThreshold: 150
    readinessProbe:
      httpGet: {path: /health/ready, port: http}
      periodSeconds: 2
      timeoutSeconds: 2
      failureThreshold: 2
    livenessProbe:
      httpGet: {path: /health/live, port: http}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 3
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      {{- if ne $models.from "image" }}
      - name: models
        mountPath: /models
        readOnly: true
      {{- end }}
volumes:
  # The workers share their metrics here.
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: 64Mi}
  {{- if eq $models.from "claim" }}
  - name: models
    persistentVolumeClaim: {claimName: {{ $models.claim | quote }}, readOnly: true}
  {{- else if eq $models.from "volumeImage" }}
  - name: models
    image: {reference: {{ $models.volumeImage | quote }}, pullPolicy: {{ .Values.image.pullPolicy }}}
  {{- else if eq $models.from "initContainer" }}
  - name: models
    emptyDir: {}
  {{- end }}
{{- end }}
