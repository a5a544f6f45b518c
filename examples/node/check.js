// For tests/integration/test_node.py: node check.js TARGET RUN GRADIENTS ELEMENTS; the gradients are float32 in a file.
// A block of all of them, asked for again because its answer is "lost" twice; a step that breaks off while it is sent;
// what is refused. One line of JSON.
'use strict'

const { createHash } = require('node:crypto')
const { readFileSync } = require('node:fs')
const { GradwireError, Worker, connect, createRun } = require('./gradwire.js')

const broken = () => Object.assign(new Error(), { code: 14, details: 'a broken connection' })

class Unlucky extends Worker {
  loses = { answer: 0, rest: 0 }

  async receive(values) {
    const receipt = await super.receive(values)
    if (this.loses.answer-- > 0) throw broken()
    return receipt
  }

  async send(block) {
    if (this.loses.rest-- <= 0) return super.send(block)
    const [first] = block
    await super.send([{ ...first, last: false }])
    throw broken()
  }
}

async function refusal(promise) {
  try {
    await promise
  } catch (error) {
    if (!(error instanceof GradwireError)) throw error
    return { reason: error.reason, applied: error.applied, metadata: error.metadata }
  }
  return null
}

const sha256 = (values) => createHash('sha256').update(values).digest('hex')

async function main(target, run, file, elements) {
  const stub = connect(target)
  const gradients = new Float32Array(new Uint8Array(readFileSync(file)).buffer)
  const steps = gradients.length / elements
  const tensors = [{ name: 'w', shape: [elements] }]
  const zeros = new Float32Array(elements)
  const create = (request) => createRun(stub, run, tensors, zeros, { amsgrad: true }, request)
  const created = [(await create('once')).created, (await create('once')).created]
  const worker = new Unlucky(stub, run, 'node', elements)

  worker.loses.answer = 2
  const block = await worker.step(gradients, { steps, returns: 'RETURNS_TRAJECTORY' })
  worker.loses.rest = 2
  const single = await worker.step(gradients.subarray(0, elements))

  const refusals = [
    await refusal(create('another')),
    await refusal(new Worker(stub, run, 'rival', elements).step(gradients, { steps })),
    await refusal(worker.step(new Float32Array(elements).fill(NaN))),
    await refusal(new Worker(stub, 'nowhere', 'node', 1).step(new Float32Array(1))),
  ]
  const after = await worker.step(gradients.subarray(0, elements)) // the number of the refused block is free
  await worker.close()
  stub.close()
  const found = [block, single, after]
  const receipts = found.map(({ receipt }) => ({ step: receipt.step, repeated: receipt.repeated }))
  console.log(JSON.stringify({ created, values: found.map(({ values }) => sha256(values)), receipts, refusals }))
}

const [target, run, file, elements] = process.argv.slice(2)
main(target, run, file, Number(elements))
