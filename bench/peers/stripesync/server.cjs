// @supabase/stripe-sync-engine behind fastify, as its README shows it.
// CommonJS: the package's migrations are not found from an ES module (__dirname).

const { StripeSync, runMigrations } = require('@supabase/stripe-sync-engine')
const Fastify = require('fastify')

const connectionString = process.env.DATABASE_URL

async function prepare() {
  const logger = { info() {}, error: (error) => { throw error } }
  await runMigrations({ databaseUrl: connectionString, schema: 'stripe', logger })
}

async function serve() {
  const sync = new StripeSync({
    poolConfig: { connectionString, max: 10 },
    stripeSecretKey: process.env.STRIPE_KEY,
    stripeWebhookSecret: process.env.STRIPE_SECRET,
  })
  const app = Fastify()
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => done(null, body))
  app.post('/webhooks', async (request) => {
    await sync.processWebhook(request.body, request.headers['stripe-signature'])
    return { received: true }
  })
  await app.listen({ port: Number(process.env.PORT), host: '127.0.0.1' })
}

process.argv[2] === 'prepare' ? prepare() : serve()
