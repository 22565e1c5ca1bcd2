-- Script of wrk: sends the raw requests of the files after `--` in turn and prints the summary as one
-- line of JSON. Latencies of a closed loop start when a request is sent.

local requests = {}
local turn = 0

function init(args)
  for _, path in ipairs(args) do
    local file = assert(io.open(path, "rb"))
    requests[#requests + 1] = file:read("*a")
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\nJSON {"seconds": %.6f, "answers": %d, "not_ok": %d, "connect": %d, "read": %d, "write": %d, '
      .. '"timeout": %d, "p50": %.3f, "p90": %.3f, "p99": %.3f, "p99.9": %.3f, "max": %.3f}\n',
    summary.duration / 1e6, summary.requests, e.status, e.connect, e.read, e.write, e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
    latency:percentile(99.9) / 1e3, latency.max / 1e3))
end
