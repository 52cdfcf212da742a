package lifecycle

import (
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/daemon"
	"github.com/kilnbuild/kiln/internal/spec"
)

// The phases, by the names of their commands.
const (
	analyzer = "analyzer"
	detector = "detector"
	restorer = "restorer"
	extender = "extender"
	builder  = "builder"
	exporter = "exporter"
	creator  = "creator"
	rebaser  = "rebaser"
)

// Phases are the commands of the lifecycle, in the order of a build.
var Phases = []string{analyzer, detector, restorer, extender, builder, exporter, creator, rebaser}

// verbs are the names that `lifecycle <verb>` takes besides those of Phases.
var verbs = map[string]string{
	"analyze": analyzer, "detect": detector, "restore": restorer, "extend": extender,
	"build": builder, "export": exporter, "create": creator, "rebase": rebaser,
}

// path is a file or directory; relative ones are made absolute.
type path string

// inputs are the values of the table's rows for one run of one phase.
type inputs struct {
	phase, api string
	args       []string // images

	analyzed, app, buildConfig, buildpacks, cacheDir, dockerCertPath, extended, extensions, generated, group,
	launchCache, launcher, launcherSBOM, layers, layoutDir, order, plan, platform,
	projectMetadata, report, run, system path

	buildImage, cacheImage, deprecation, execEnv, experimental, kind, logFormat, logLevel, previousImage,
	processType, registryAuth, runImage, dockerHost, dockerTLSVerify, deprecatedImage, sourceDateEpoch string

	daemon, decided, force, layout, noColor, parallel, skipLayers, skipRestore bool

	whole bool // the creator is at work: every phase in one process

	uid, gid int // -1 where not given

	insecure, tags []string
	kanikoTTL      time.Duration
}

// Row is one input of the lifecycle. The table below is all that the lifecycle
// knows of its command line: the parser, the help text, the documentation and
// the golden test are made from it. A flag that differs between phases has
// several rows.
type Row struct {
	Flag    string // with its dash; "" where there is only a variable
	Env     string // "" where there is only a flag
	Default string // <layers> stands for the layers directory
	Help    string
	Phases  []string
	Since   string // the first Platform API that has it; "" for all
	Until   string // the first that has it no more; "" for none

	to func(*inputs) any // *path, *string, *bool, *int, *[]string or *time.Duration
}

// in reports whether the row counts for a phase and a version of the Platform API.
func (r Row) in(phase, api string) bool {
	return slices.Contains(r.Phases, phase) && spec.InRange(api, r.Since, r.Until)
}

// Sets of phases that rows share.
var (
	everywhere = Phases
	daemons    = []string{analyzer, restorer, exporter, creator, rebaser}
	registries = []string{analyzer, restorer, exporter, creator, rebaser} // hold credentials
	buildTime  = []string{detector, extender, builder, creator}           // run foreign code
	withLayers = []string{analyzer, detector, restorer, extender, builder, exporter, creator}
)

func only(phases ...string) []string { return phases }

// table is every input of every phase (Platform API, "Lifecycle Interface").
var table = []Row{
	{"-analyzed", "CNB_ANALYZED_PATH", "<layers>/analyzed.toml", "what the analyzer found", only(analyzer, restorer, extender, exporter), "", "", func(in *inputs) any { return &in.analyzed }},
	{"-analyzed", "CNB_ANALYZED_PATH", "<layers>/analyzed.toml", "what the analyzer found", only(detector), "0.10", "", func(in *inputs) any { return &in.analyzed }},
	{"-analyzed", "CNB_ANALYZED_PATH", "<layers>/analyzed.toml", "what the analyzer found", only(builder), "0.12", "", func(in *inputs) any { return &in.analyzed }},
	{"", "CNB_ANALYZED_PATH", "<layers>/analyzed.toml", "what the analyzer found", only(creator), "", "", func(in *inputs) any { return &in.analyzed }},
	{"-app", "CNB_APP_DIR", "/workspace", "the app", only(detector, extender, builder, exporter, creator), "", "", func(in *inputs) any { return &in.app }},
	{"-build-config", "CNB_BUILD_CONFIG_DIR", "/cnb/build-config", "the operator's environment", buildTime, "0.11", "", func(in *inputs) any { return &in.buildConfig }},
	{"-build-image", "CNB_BUILD_IMAGE", "", "image that is to be extended", only(restorer), "0.10", "", func(in *inputs) any { return &in.buildImage }},
	{"-buildpacks", "CNB_BUILDPACKS_DIR", "/cnb/buildpacks", "the buildpacks", buildTime, "", "", func(in *inputs) any { return &in.buildpacks }},
	{"-cache-dir", "CNB_CACHE_DIR", "", "directory of the cache", only(restorer, exporter, creator), "", "", func(in *inputs) any { return &in.cacheDir }},
	{"-cache-image", "CNB_CACHE_IMAGE", "", "image that holds the cache; goes before -cache-dir", only(analyzer, restorer, exporter, creator), "", "", func(in *inputs) any { return &in.cacheImage }},
	{"-daemon", "CNB_USE_DAEMON", "", "images are in a docker daemon", only(analyzer, exporter, creator, rebaser), "", "", func(in *inputs) any { return &in.daemon }},
	{"-daemon", "CNB_USE_DAEMON", "", "images are in a docker daemon", only(restorer), "0.12", "", func(in *inputs) any { return &in.daemon }},
	{"", "DOCKER_CERT_PATH", "", "directory of ca.pem, cert.pem and key.pem for a daemon that is spoken to with TLS", daemons, "", "", func(in *inputs) any { return &in.dockerCertPath }},
	{"", "DOCKER_HOST", daemon.DefaultHost, "address of the docker or podman daemon, for -daemon: unix:///socket or tcp://host:port", daemons, "", "", func(in *inputs) any { return &in.dockerHost }},
	{"", "DOCKER_TLS_VERIFY", "", "if set, the daemon's certificate is verified", daemons, "", "", func(in *inputs) any { return &in.dockerTLSVerify }},
	{"", "CNB_DEPRECATION_MODE", "warn", "what to do about what is deprecated: warn, error or silent", everywhere, "", "", func(in *inputs) any { return &in.deprecation }},
	{"", "CNB_EXEC_ENV", spec.DefaultExecEnv, "execution environment", withLayers, "0.15", "", func(in *inputs) any { return &in.execEnv }},
	{"", "CNB_EXPERIMENTAL_MODE", "error", "what to do about experimental features: error, warn or silent", withLayers, "0.10", "", func(in *inputs) any { return &in.experimental }},
	{"-decided", "", "", "-group and -plan are given: detect nothing, only let the image extensions of the group generate (kiln's own)", only(detector), "0.10", "", func(in *inputs) any { return &in.decided }},
	{"-extended", "CNB_EXTENDED_DIR", "<layers>/extended", "extended images", only(extender, exporter), "0.12", "", func(in *inputs) any { return &in.extended }},
	{"-extensions", "CNB_EXTENSIONS_DIR", "/cnb/extensions", "the image extensions", only(detector, creator), "0.10", "", func(in *inputs) any { return &in.extensions }},
	{"-force", "CNB_FORCE_REBASE", "", "rebase even onto an unknown or different run image", only(rebaser), "0.12", "", func(in *inputs) any { return &in.force }},
	{"-generated", "CNB_GENERATED_DIR", "<layers>/generated", "Dockerfiles of the image extensions", only(detector, restorer, extender), "0.10", "", func(in *inputs) any { return &in.generated }},
	{"-gid", "CNB_GROUP_ID", "", "group of the build user", only(analyzer, restorer, extender, exporter, creator, rebaser), "", "", func(in *inputs) any { return &in.gid }},
	{"-group", "CNB_GROUP_PATH", "<layers>/group.toml", "the chosen group of buildpacks", only(detector, restorer, extender, builder, exporter), "", "", func(in *inputs) any { return &in.group }},
	{"", "CNB_GROUP_PATH", "<layers>/group.toml", "the chosen group of buildpacks", only(creator), "", "", func(in *inputs) any { return &in.group }},
	{"-image", "", "", "deprecated name of -run-image", only(rebaser), "", "", func(in *inputs) any { return &in.deprecatedImage }},
	{"-insecure-registry", "CNB_INSECURE_REGISTRIES", "", "prefix of references that need no TLS; may be repeated", registries, "0.13", "", func(in *inputs) any { return &in.insecure }},
	{"-kaniko-cache-ttl", "CNB_KANIKO_CACHE_TTL", "336h", "how long what Dockerfiles made is kept", only(extender), "0.10", "", func(in *inputs) any { return &in.kanikoTTL }},
	{"-kind", "CNB_EXTEND_KIND", "build", "image to extend: build or run", only(extender), "0.12", "", func(in *inputs) any { return &in.kind }},
	{"-launch-cache", "CNB_LAUNCH_CACHE_DIR", "", "layers of the app image; with -daemon", only(analyzer), "0.9", "", func(in *inputs) any { return &in.launchCache }},
	{"-launch-cache", "CNB_LAUNCH_CACHE_DIR", "", "layers of the app image; with -daemon", only(exporter, creator), "", "", func(in *inputs) any { return &in.launchCache }},
	{"-launcher", "", "/cnb/lifecycle/launcher", "launcher for the app image", only(exporter, creator), "", "", func(in *inputs) any { return &in.launcher }},
	{"-launcher-sbom", "", "/cnb/lifecycle", "directory with the launcher's SBOMs", only(exporter, creator), "0.11", "", func(in *inputs) any { return &in.launcherSBOM }},
	{"-layers", "CNB_LAYERS_DIR", "/layers", "the layers", withLayers, "", "", func(in *inputs) any { return &in.layers }},
	{"", "CNB_LAYERS_DIR", "/layers", "the layers: where the report goes", only(rebaser), "", "", func(in *inputs) any { return &in.layers }},
	{"-layout", "CNB_USE_LAYOUT", "", "images are in OCI layouts below -layout-dir (experimental)", only(analyzer, restorer, exporter, creator), "0.12", "", func(in *inputs) any { return &in.layout }},
	{"-layout-dir", "CNB_LAYOUT_DIR", "", "directory of OCI layouts", only(analyzer, restorer, exporter, creator), "0.12", "", func(in *inputs) any { return &in.layoutDir }},
	{"-log-format", "", "text", "text, or json: one event a line (kiln's own)", everywhere, "", "", func(in *inputs) any { return &in.logFormat }},
	{"-log-level", "CNB_LOG_LEVEL", "info", "debug, info, warn or error", everywhere, "", "", func(in *inputs) any { return &in.logLevel }},
	{"-no-color", "CNB_NO_COLOR", "", "no colours", everywhere, "", "", func(in *inputs) any { return &in.noColor }},
	{"-order", "CNB_ORDER_PATH", "", "groups to try; <layers>/order.toml if it exists, else /cnb/order.toml", only(detector, creator), "", "", func(in *inputs) any { return &in.order }},
	{"-parallel", "CNB_PARALLEL_EXPORT", "", "export image and cache at the same time", only(exporter, creator), "0.13", "", func(in *inputs) any { return &in.parallel }},
	{"-plan", "CNB_PLAN_PATH", "<layers>/plan.toml", "the build plan", only(detector, extender, builder), "", "", func(in *inputs) any { return &in.plan }},
	{"", "CNB_PLAN_PATH", "<layers>/plan.toml", "the build plan", only(creator), "", "", func(in *inputs) any { return &in.plan }},
	{"-platform", "CNB_PLATFORM_DIR", "/platform", "the user's environment", buildTime, "", "", func(in *inputs) any { return &in.platform }},
	{"-previous-image", "CNB_PREVIOUS_IMAGE", "", "image of the last build; <image> unless set", only(analyzer, creator), "", "", func(in *inputs) any { return &in.previousImage }},
	{"-previous-image", "CNB_PREVIOUS_IMAGE", "", "image to rebase; the first <image> unless set", only(rebaser), "0.11", "", func(in *inputs) any { return &in.previousImage }},
	{"-process-type", "CNB_PROCESS_TYPE", "", "process that the image starts", only(exporter, creator), "", "", func(in *inputs) any { return &in.processType }},
	{"-project-metadata", "CNB_PROJECT_METADATA_PATH", "<layers>/project-metadata.toml", "where the app comes from", only(exporter, creator), "", "", func(in *inputs) any { return &in.projectMetadata }},
	{"", "CNB_REGISTRY_AUTH", "", "JSON object: registry to value of its Authorization header", registries, "", "", func(in *inputs) any { return &in.registryAuth }},
	{"-report", "CNB_REPORT_PATH", "<layers>/report.toml", "what was exported", only(exporter, creator, rebaser), "", "", func(in *inputs) any { return &in.report }},
	{"-run", "CNB_RUN_PATH", "/cnb/run.toml", "run images", only(analyzer, detector, exporter, creator), "0.12", "", func(in *inputs) any { return &in.run }},
	{"-run", "CNB_RUN_PATH", "/cnb/run.toml", "run images", only(restorer), "0.14", "", func(in *inputs) any { return &in.run }},
	{"-run-image", "CNB_RUN_IMAGE", "", "run image; one of -run unless set", only(analyzer, creator), "", "", func(in *inputs) any { return &in.runImage }},
	{"-run-image", "CNB_RUN_IMAGE", "", "run image; the one that the image names unless set", only(rebaser), "", "", func(in *inputs) any { return &in.runImage }},
	{"-skip-layers", "CNB_SKIP_LAYERS", "", "restore no layers", only(restorer), "", "", func(in *inputs) any { return &in.skipLayers }},
	{"-skip-layers", "CNB_SKIP_LAYERS", "", "do not restore the SBOM layer", only(analyzer), "0.9", "", func(in *inputs) any { return &in.skipLayers }},
	{"-skip-restore", "CNB_SKIP_RESTORE", "", "restore nothing but store.toml", only(creator), "", "", func(in *inputs) any { return &in.skipRestore }},
	{"", "SOURCE_DATE_EPOCH", "", "seconds since 1970 that the image is said to be created", only(exporter, creator), "0.9", "", func(in *inputs) any { return &in.sourceDateEpoch }},
	{"-stack", "CNB_STACK_PATH", "/cnb/stack.toml", "run image", only(analyzer, exporter, creator), "", "0.12", func(in *inputs) any { return &in.run }},
	{"-system", "CNB_SYSTEM_PATH", "/cnb/system.toml", "system buildpacks", only(detector, creator), "0.15", "", func(in *inputs) any { return &in.system }},
	{"-tag", "", "", "another name for the image; may be repeated", only(analyzer, creator), "", "", func(in *inputs) any { return &in.tags }},
	{"-uid", "CNB_USER_ID", "", "user of the build", only(analyzer, restorer, extender, exporter, creator, rebaser), "", "", func(in *inputs) any { return &in.uid }},
}
