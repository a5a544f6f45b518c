// A client of gradwire, written from protos/gradwire/v1/*.proto alone: runs of float32, one gradient vector a step.
'use strict'

const path = require('node:path')
const { once } = require('node:events')
const { setTimeout: sleep } = require('node:timers/promises')
const grpc = require('@grpc/grpc-js')
const loader = require('@grpc/proto-loader')
const protobuf = require('protobufjs')

const protos = path.join(__dirname, '../../protos')
const how = { includeDirs: [protos], keepCase: true, longs: Number, defaults: true }
const definition = loader.loadSync('gradwire/v1/service.proto', how)
const { OptimizerService } = grpc.loadPackageDefinition(definition).gradwire.v1

// What carries a refusal, as service.proto has it.
const errors = protobuf.parse(`syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }`).root
const [Status, ErrorInfo] = ['Status', 'ErrorInfo'].map((name) => errors.lookupType(name))

if (require('node:os').endianness() !== 'LE') throw new Error('the wire is little-endian, and Float32Array here is not')

const PASSING = ['UNAVAILABLE', 'CANCELLED', 'UNKNOWN', 'INTERNAL', 'DEADLINE_EXCEEDED', 'ABORTED']
const SLICE_BYTES = 2 ** 20

/** A failed call. `reason` is empty where the transport failed; `applied` is true, false, or null: not known. */
class GradwireError extends Error {
  constructor(failure) {
    super(failure.details)
    const [trailer] = failure.metadata?.get('grpc-status-details-bin') ?? []
    const detail = trailer && Status.decode(trailer).details[0]
    const info = detail ? ErrorInfo.decode(detail.value) : { domain: '' }
    const ours = info.domain === 'gradwire'
    this.code = failure.code
    this.reason = ours ? info.reason : ''
    this.metadata = ours ? info.metadata : {}
    this.applied = { true: true, false: false }[this.metadata.applied] ?? null
    this.passing = ours ? ['DRAINING', 'STARTING'].includes(this.reason) : PASSING.includes(grpc.status[this.code])
  }
}

function connect(target) {
  const keepalive = { 'grpc.keepalive_time_ms': 10_000, 'grpc.keepalive_timeout_ms': 20_000 }
  return new OptimizerService(target, grpc.credentials.createInsecure(), keepalive)
}

/** Calls `attempt` until it succeeds, fails for good, or `patienceSeconds` are over. Rejects with a GradwireError. */
async function patiently(patienceSeconds, attempt) {
  const giveUpAt = Date.now() + 1000 * patienceSeconds
  for (let pause = 100; ; pause = Math.min(2 * pause, 3000)) {
    try {
      return await attempt()
    } catch (failure) {
      const error = failure.code === undefined ? failure : new GradwireError(failure)
      if (!error.passing || Date.now() + pause > giveUpAt) throw error
      await sleep(pause * (0.5 + Math.random() / 2))
    }
  }
}

/** Creates a run of one group. `tensors`: [{name, shape}]; `values`: theirs, one after another; `adam`: see Adam. A
 *  server that is not there yet is waited for; who asks again with the same `requestId` gets the run it has made. */
function createRun(stub, name, tensors, values, adam, requestId, patienceSeconds = 60) {
  const send = (resolve, reject) => {
    const call = stub.CreateRun((failure, answer) => (failure ? reject(failure) : resolve(answer)))
    call.on('error', () => {})
    call.write({ header: { spec: { name: `runs/${name}`, groups: [{ tensors, adam }] }, request_id: requestId } })
    for (const { offset, data } of slices(values, 1)) call.write({ slice: { offset, data } })
    call.end()
  }
  return patiently(patienceSeconds, () => new Promise(send))
}

/** `rows` rows of float32, one after another, as slices [rows, length] of a good size: {offset, data}. */
function* slices(values, rows) {
  const elements = values.length / rows
  const most = Math.max(1, Math.floor(SLICE_BYTES / 4 / rows))
  for (let offset = 0; offset < elements; offset += most) {
    const length = Math.min(most, elements - offset)
    const part = new Float32Array(rows * length)
    for (let row = 0; row < rows; row++) {
      const start = row * elements + offset
      part.set(values.subarray(start, start + length), row * length)
    }
    yield { offset, data: Buffer.from(part.buffer) }
  }
}

/** A worker at a run. Each step is applied exactly once, however often the connection breaks meanwhile. */
class Worker {
  /** `elements`: length of the run's vector. `patienceSeconds`: how long a step is tried. */
  constructor(stub, run, workerId, elements, patienceSeconds = 60) {
    Object.assign(this, { stub, elements, patienceSeconds })
    this.hello = { attach: { run: `runs/${run}`, worker_id: workerId } }
    this.sequence = null // the last block that we have a receipt for
    this.stream = null
  }

  /** Sends `steps` gradients, row after row. Resolves to {values, receipt}: the parameters after the block, or, with
   *  RETURNS_TRAJECTORY, after each step. Rejects with a GradwireError. */
  async step(gradients, { steps = 1, returns = 'RETURNS_LAST' } = {}) {
    const rows = { RETURNS_LAST: 1, RETURNS_TRAJECTORY: steps, RETURNS_NONE: 0 }[returns]
    return patiently(this.patienceSeconds, async () => {
      try {
        const applied = await this.attach()
        const sequence = (this.sequence ??= applied) + 1
        if (applied !== sequence && applied !== sequence - 1) {
          throw new Error(`the server is at block ${applied}, not ${this.sequence}: lost steps, or two of one id`)
        }
        // What was applied is asked for its result; else it goes (again): the same bytes under the same number.
        const again = applied === sequence
        const block = again ? [{ sequence, last: true }] : this.block(sequence, gradients, steps, returns)
        const values = new Float32Array(rows * this.elements)
        const [receipt] = await Promise.all([this.receive(values), this.send(block)]) // reads while it writes
        this.sequence = sequence
        return { values, receipt }
      } catch (failure) {
        this.drop()
        throw failure
      }
    })
  }

  /** Resolves to the last block of ours that the server has applied. */
  async attach() {
    if (this.stream) return this.sequence
    this.stream = this.stub.Train()
    this.stream.on('error', () => {}) // whoever reads is told
    this.answers = this.stream[Symbol.asyncIterator]()
    this.stream.write(this.hello)
    return (await this.next()).attached.last_sequence
  }

  *block(sequence, gradients, steps, returns) {
    const parts = [...slices(gradients, steps)]
    for (const [i, part] of parts.entries()) {
      yield { sequence, ...part, last: i === parts.length - 1, ...(i === 0 && { header: { steps, returns } }) }
    }
  }

  async send(block) {
    for (const gradients of block) {
      if (!this.stream.write({ gradients })) await once(this.stream, 'drain')
    }
  }

  /** Puts the answer into `values` and resolves to its receipt. */
  async receive(values) {
    for (;;) {
      const { offset, first_step: first, steps, data, receipt } = (await this.next()).parameters
      const length = steps ? data.length / 4 / steps : 0
      const part = new Float32Array(new Uint8Array(data).buffer) // a copy, for the alignment
      for (let row = 0; row < steps; row++) {
        values.set(part.subarray(row * length, (row + 1) * length), (first + row) * this.elements + offset)
      }
      if (receipt) return receipt
    }
  }

  async next() {
    const { value, done } = await this.answers.next()
    if (done) throw Object.assign(new Error(), { code: grpc.status.UNAVAILABLE, details: 'the stream has ended' })
    return value
  }

  drop() {
    this.stream?.cancel()
    this.stream = null
  }

  /** Gives the run back; resolves when the server has let go of it. */
  async close() {
    this.stream?.end()
    while (this.stream && !(await this.answers.next()).done);
    this.stream = null
  }
}

module.exports = { GradwireError, Worker, connect, createRun }
