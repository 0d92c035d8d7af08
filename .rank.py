import sys, xml.etree.ElementTree as E, collections
t=E.parse(sys.argv[1]); n=int(sys.argv[2]); m=int(sys.argv[3])
f=collections.Counter(); c=collections.Counter(); r=[]
for x in t.iter('testcase'):
    s=float(x.get('time')); k=x.get('classname'); f[k]+=s; c[k]+=1; r.append((s,k+'::'+x.get('name')))
print('total',sum(f.values()),len(r))
for s,k in sorted(r,reverse=True)[:n]: print(f'{s:7.1f} {k}')
print('---- files')
for k,s in f.most_common(m): print(f'{s:7.1f} {c[k]:4d} {k}')
