// Adam goes to the wrong end and AMSGrad to the right one: the experiment of client/synthetic.py, in blocks of steps.
//   node demo.js [TARGET] [STEPS]
'use strict'

const { createHash, randomUUID } = require('node:crypto')
const { Worker, connect, createRun } = require('./gradwire.js')

const BLOCK = 10_000

/** f_t(x) = slope * x on [-1, 1], t from 0; the best x is -1. */
const slope = (t) => (t % 101 === 1 ? 1010 : -10)

async function experiment(stub, amsgrad, steps) {
  const name = `node-${randomUUID()}`
  const adam = { lr: 1e-2, beta1: 0.9, beta2: 0.99, amsgrad, low: -1, high: 1 }
  await createRun(stub, name, [{ name: 'x', shape: [] }], new Float32Array(1), adam, randomUUID())
  const worker = new Worker(stub, name, 'demo', 1)
  const hash = createHash('sha256')
  let [x, regret] = [0, 0]
  for (let start = 0; start < steps; start += BLOCK) {
    const gradients = Float32Array.from({ length: Math.min(BLOCK, steps - start) }, (_, i) => slope(start + i))
    const { values } = await worker.step(gradients, { steps: gradients.length, returns: 'RETURNS_TRAJECTORY' })
    for (const [i, g] of gradients.entries()) {
      regret += g * (x + 1)
      x = values[i]
    }
    hash.update(values)
  }
  await worker.close()
  await new Promise((resolve, reject) => stub.DeleteRun({ name: `runs/${name}` }, (e) => (e ? reject(e) : resolve())))
  return { x, averageRegret: regret / steps, trajectory: hash.digest('hex') }
}

async function main(target = 'localhost:50051', steps = 1_000_000) {
  const stub = connect(target)
  try {
    for (const amsgrad of [false, true]) {
      const { x, averageRegret, trajectory } = await experiment(stub, amsgrad, Number(steps))
      const optimizer = amsgrad ? 'AMSGrad' : 'Adam'
      console.log(JSON.stringify({ optimizer, steps: Number(steps), x, averageRegret, trajectory }))
    }
  } catch (error) {
    console.error(`error: ${error.message}`)
    process.exitCode = 1
  } finally {
    stub.close()
  }
}

main(...process.argv.slice(2))
