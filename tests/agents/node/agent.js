// An agent that knows nothing of hubmeter: the SDK and its OTLP exporter, without an argument.
//
//     node agent.js http|proto [steps]        http sends JSON, proto protobuf
//
// Each step is a collection of its own, and the end of the provider is one more: the values of
// agent.steps are 1, 2, ..., steps, steps.
const { MeterProvider, PeriodicExportingMetricReader } = require("@opentelemetry/sdk-metrics");
const [form, steps = "5"] = process.argv.slice(2);
const { OTLPMetricExporter } = require(`@opentelemetry/exporter-metrics-otlp-${form}`);

async function main() {
  const reader = new PeriodicExportingMetricReader({ exporter: new OTLPMetricExporter() });
  const provider = new MeterProvider({ readers: [reader] });
  const counter = provider.getMeter("agent").createCounter("agent.steps");
  for (let step = 0; step < Number(steps); step++) {
    counter.add(1, { language: "node" });
    await provider.forceFlush();
    console.log("step", step);
  }
  await provider.shutdown();
}

main();
